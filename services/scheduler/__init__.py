"""The scheduler: knows the nodes and links, cuts models over them, brings pipelines up and keeps them up.

    registry      who is a member, with what measures (pure)
    holdings      which node holds which stage, and who is suspected (pure)
    placement     from measures and a manifest to the planner's terms (pure)
    planner       the exact cut; costs, planner_search and planner_bottleneck belong to it (pure)
    places, crew  who could take a place: standbys and spares
    book, store   the deployments as they are, on disk before anybody sees them
    executors     calls to nodes: load, unload
    deployments   coming up, looking, going down
    replacing     places filled anew when a gateway asks
    upkeep        what is done unasked: stages loaded again, standbys refilled, strays let go
    server        the scheduler on the wire
"""
