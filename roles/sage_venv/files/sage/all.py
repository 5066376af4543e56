# sage.all for the packages that are here: the names of each, in the order in which they build on each other.
from sage.all__sagemath_repl import *
from sage.all__sagemath_modules import *
from sage.all__sagemath_combinat import *
from sage.all__sagemath_graphs import *
