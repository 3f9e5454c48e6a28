"""Drawing with a trained model: what a picture says of its origin (provenance.py), and a run of itself (card.py)."""
