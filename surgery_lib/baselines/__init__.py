"""The methods that surgery is compared with, one file each; `registry` is their table.

Nothing is imported here: the table needs peft and more, a single method mostly does not.
"""
