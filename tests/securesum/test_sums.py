"""Whole sums, with nodes that vanish: always the plain integer sum over the survivors, or an error."""

from __future__ import annotations

from services.securesum import spans_of
from services.securesum.masks import SPAN_VALUES
from tests.securesum.support import (
    BITS,
    People,
    answer,
    join_all,
    make_nodes,
    make_values,
    offer_all,
    plain_sum,
    result,
    upload,
)

SPANS = (5, 3)


def test_sum_of_eight_nodes_is_the_plain_sum_in_every_round(people: People) -> None:
    """Eight nodes, several rounds under one set-up, vectors of more than a span: every sum is exact."""
    names = people.first(8)
    nodes = make_nodes(people, names, 1)
    collector = join_all(people, nodes)
    offer_all(people, collector, nodes, 1, rounds=3)
    for round_index in range(3):
        values = make_values(names, SPAN_VALUES + 77, round_index)
        round_sum = collector.begin_round(round_index, names, spans_of(SPAN_VALUES + 77), BITS)
        for name in names:
            upload(round_sum, nodes[name], values[name])
        request = round_sum.close()
        assert [round_sum.take_answer(answer(nodes[name], request)) for name in names[:6]] == [False] * 5 + [True]
        assert result(round_sum).tolist() == plain_sum(values, names)
