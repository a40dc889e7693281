"""What stands between the network and the endpoints: who may call, how much, and what a browser may do with it."""
