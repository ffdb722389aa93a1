"""How the updates of a round become the run's next weights; `parse` makes a strategy from its name and options.

base       the interface, what a strategy is given, and the state that it keeps between rounds
options    options by name, with their ranges
mean       FedAvg and FedProx: the weighted mean
adaptive   FedAdam and FedYogi: the mean as a gradient for an adaptive optimiser at the server
outer      DiLoCo: many steps at the nodes, Nesterov momentum at the server
buffered   FedBuff: whoever is ready, late ones counting less
robust     trimmed mean and Krum: a minority of nodes may send anything
"""

from services.aggregator.strategies.base import Each, Mean, Need, State, Strategy
from services.aggregator.strategies.registry import STRATEGIES, parse
