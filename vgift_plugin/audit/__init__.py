"""`vgift audit`: can a task be solved without looking?"""
