"""The nouns that the stages share: parameters, data sets, models, training, tracking."""
