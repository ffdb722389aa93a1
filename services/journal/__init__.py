"""What a sender keeps of what it sent, sealed: rows in memory, and files that outlive the process.

`rows` is the journal of one generation's hidden states; `sealed_file` is an append-only file whose records only the
node that wrote them can read. Executors and gateways both use it; clients never do.
"""
