from eval.main import main

main()
