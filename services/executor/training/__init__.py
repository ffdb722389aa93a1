"""Training runs at a node: what an aggregator orders, done beside the stages of models.

    desk          whose messages count, and which run each is of
    run           one run: its orders one after the other, its job, its answers
    outbox        what a run has to say, to the newest session of its aggregator
    work          what an order says, checked: names, seeds, the plan of local training
    files         what is kept of a run on disk; weights and contribution are two of its files
    thread        the one thread that trains
    shop          a run's task, examples and model, in that thread
    job           a round's work there: evaluate, train, encode, write down

Nothing here imports torch before the first job runs.
"""
