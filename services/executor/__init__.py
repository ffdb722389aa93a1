"""The executor: holds stages of models on one node, runs their steps and pushes the results on.

    engine      one thread that computes; fairqueue: whose step is next, by slice: pure
    runner      a loaded stage: its generations, what comes in, what is computed
    progress    how far a generation is and what each message means for it: pure
    recovery    stopping a generation, letting it go on, feeding a stage that takes over
    cachemove   a stage's cache on its way to another node; snapshots: on its way to the disk
    onward      what leaves a stage; outbound: for one peer, in order; peers: sessions both ways
    relaying    connections of others that pass through this node
    loading     fetching, verifying and loading a stage
    stage       layers of a model as one callable; kvcache, sampling, architecture belong to it
    training    federated training beside the stages: orders of an aggregator, weights, contributions
    slicing     what slices may use of this node: pure
    measures    what this machine is and can do
    membership  the heartbeat stream and the probing of links
    node        all of it together
    server      the node on the wire
"""
