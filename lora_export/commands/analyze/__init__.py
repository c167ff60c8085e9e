"""What an adapter learned: section 7 of the paper on any adapter, and what one would cost."""
