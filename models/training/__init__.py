"""The parts of the training of the shipped model: corpus, tokenizer, network, optimiser, measures."""
