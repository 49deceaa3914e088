"""The processes that run a plan.

Transport, training of one block, schedules, checkpoints, signs of life.
"""
