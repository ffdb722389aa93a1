"""How a model's update becomes few bytes and comes back: nodes encode, aggregators decode, both agree on the layout.

    layout     a model's tensors as one flat vector, and the proof that both ends cut it alike
    spans      the pieces of 65,536 values in which a vector travels
    scheme     `topk:0.01+fp16`: what users write
    topk       which values are the largest, exactly
    blocks     which values all nodes send in a round, where they have to agree
    quantise   int8 and int4 with a scale per block
    integers   values on a scale that all nodes share, for sums of integers
    values     a run of values as bytes
    indices    increasing indices as bytes
    codec      all of it together: an update to spans, a span to values
    faults     the errors they share
    feedback   what an encoding left out, kept on disk until it has been sent

numpy alone, no torch; no clock, and no files but the residual's.
"""
