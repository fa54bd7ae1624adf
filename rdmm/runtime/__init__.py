"""Services of the running process.

``interrupt`` handles Ctrl-C, SIGTERM and SIGHUP, ``progress`` reports iterations to the progress bar, ``warnings`` collects warnings for
run.json, ``resources`` measures memory and selects the device, ``memory`` words the errors of failed
allocations, and ``threads`` lets threads sleep while they wait.
"""
