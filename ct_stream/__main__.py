"""Run the command line: python -m ct_stream"""

from ct_stream.cli import main

if __name__ == "__main__":
    main()
