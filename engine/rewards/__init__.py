"""What scores completions for reinforcement learning: verifiers of ours, functions of the user's. Light."""
