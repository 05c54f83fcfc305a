"""`vgift probe`: does a trained model look, and does a data set need its pictures?"""
