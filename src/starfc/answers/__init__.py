"""What people say about clusters: marks, the clusters made again around them, questions worth asking, and names."""
