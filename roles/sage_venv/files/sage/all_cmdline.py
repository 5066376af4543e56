# What a preparsed .sage file imports.
from sage.all import *
