"""`vgift probe`: does a trained model use its pictures, and does a data set need them?"""
