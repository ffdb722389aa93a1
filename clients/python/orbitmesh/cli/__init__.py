"""The command line `orbitmesh`."""
