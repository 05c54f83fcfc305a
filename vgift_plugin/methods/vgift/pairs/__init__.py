"""`vgift pairs`: matched points of pairs of different photographs, by DINOv2 features."""
