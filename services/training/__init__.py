"""What a node trains and how: tasks, the split of their data between nodes, and the local part of a round."""
