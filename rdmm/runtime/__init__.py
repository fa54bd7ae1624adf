"""The process that a registration runs in.

``interrupt`` is Ctrl-C and SIGTERM, ``progress`` what the progress bar listens to, ``warnings`` what run.json records.
``resources`` measures memory and chooses the device.
"""
