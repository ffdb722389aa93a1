"""The executor: holds stages of models on one node, runs their steps and pushes the results on.

    engine      one thread that computes, first come first served
    runner      a loaded stage: its generations, what comes in, what goes on
    outbound    what leaves for one peer, in order
    loading     fetching, verifying and loading a stage
    stage       layers of a model as one callable; kvcache, sampling, architecture belong to it
    measures    what this machine is and can do
    membership  the heartbeat stream and the probing of links
    node        all of it together
    server      the node on the wire
"""
