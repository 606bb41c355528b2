"""Raw image/mask pairs to verified, split, packed WebDataset shards on a store, and back to samples."""
