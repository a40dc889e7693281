"""Peers: other tools that embed galleries, each in a virtual environment of its own."""

from cirrus_bench.peers.install import PEERS, Peer
from cirrus_bench.peers.process import PeerProcess, start_peers

__all__ = ["PEERS", "Peer", "PeerProcess", "start_peers"]
