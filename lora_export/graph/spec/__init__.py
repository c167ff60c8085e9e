"""Values that describe a graph: its task, its inputs and outputs, the graph without weights."""
