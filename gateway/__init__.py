"""The ground gateway: where users meet the mesh.

packs        the packs it keeps and hands to executors
text         tokens from text and back
upstream     the scheduler and the sessions to executors
generations  a prompt's way through the mesh
breakdown    where the time of a generation went (pure)
traces       the breakdowns that it remembers, and spans from them
relay        the scheduler's service, answered on its behalf
aggregator_relay  the aggregator's, where there is one
server       the gateway on the wire
"""
