"""The scheduler: knows the nodes and links, cuts models over them, brings pipelines up and keeps them up.

    registry      who is a member, with what measures (pure)
    placement     from measures and a manifest to the planner's terms (pure)
    planner       the exact cut; costs, planner_search and planner_bottleneck belong to it (pure)
    deployments   loading, unloading, repairing
    store         what was acknowledged, on disk
    server        the scheduler on the wire
"""
