"""What the pipeline computes: parameters, data sets, models, training, evaluation."""
