"""The fidelity gate: an export, or a plan compiled from it, answers as its original does."""
