"""What nobody meant to send: changed frames and changed requests, by the tests in small and by `make fuzz` in large."""
