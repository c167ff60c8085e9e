"""A differential fuzz: what `merge` and the merged graphs compute, against unmerged PEFT in torch.

    seed → base (a tiny checkpoint of some family, saved in some way)
         → adapter (trained by PEFT with some settings, its file written in some way)
         → the trained model's outputs  =?=  those of the merged checkpoint, and of the graph

The trained model itself, with PEFT's own layers, is the reference. Run it as
``python -m tools.merge_fuzz --count 5000 --seed 1``; ``--case SEED:INDEX`` runs one case again.
"""
