"""The optimiser of slices: problems in, allocations out, by HiGHS. It knows no service, no store, no wire."""
