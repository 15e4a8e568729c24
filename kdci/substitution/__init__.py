"""What the methods share: their params block, their source over a bank, how they are found."""
