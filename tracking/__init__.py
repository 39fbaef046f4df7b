"""How results are recorded and shown: MLflow's store and runs, figures, and git's commit.

Nothing here decides a result.
"""
