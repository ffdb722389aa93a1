"""The optimiser of slices: problems in, allocations out, by HiGHS. It knows no service, no store, no wire.

problem, problem_json   the words that the optimiser and its callers share, and their form between processes
solver                  linear and mixed-integer programs for HiGHS
model                   a problem as arrays
relaxation              the bound, and the pairs of slice and node that are worth a look
placing, branching      placements: by dives and small changes; by branch and bound
search                  these together: as much as possible of something
raising, levels         the level that all can have; the order above it
nearest                 the least latency
settled                 from a placement to allocations that keep every promise to the last bit
infeasible              why there is none
optimise                by goal; `worker`, the process that does it
"""
