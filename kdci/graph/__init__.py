"""The one description of an experiment's stages: what each is made from and what decides it.

Torch-free. dvc.yaml's cells, the layout's places, plans, forecasts, tracking, sweeps and searches
all ask it; nobody takes the name of a stage apart.
"""
