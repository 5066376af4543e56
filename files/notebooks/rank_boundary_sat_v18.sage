r"""
Is there a relabelling of a graph whose boundary matrix has low rank?

Given a graph with adjacency matrix A over GF(2) (N vertices, zero diagonal) and
a rank r, decide whether some permutation matrix P makes

    B = sum over k of (P A P^T with row k and column k deleted)

an (N-1)x(N-1) matrix mod 2 with rank(B) <= r.

The rank condition is a kernel condition: B Y = 0 for some Y of kdim = N-1-r
independent columns.  Such a Y has kdim rows J in which it is invertible, and
then it can be chosen with Y_J = identity.  So the question splits into one case
for each kdim-subset J of the rows, and the cases are independent: this is what
--stride and --offset divide among workers.  The answer is SAT if any case is.

    sage rank_boundary_sat_v18.sage --graph petersen --rank 2 --solver sat \
        --sat_backend cryptominisat --scan_all_J --want_solution --resume \
        --stop_file petersen_stop.txt --progress_every 1 --stride 4 --offset 0

Files, in the current folder:

    state_GRAPH_rR_strideS_offK.txt   the last finished case, for --resume
    the --stop_file                   while it exists no further case is begun;
                                      made here when a solution is found

Exit status: 0 finished or stopped early, 1 a result that did not pass its
verification, 2 bad arguments, 143 ended by SIGTERM.
"""
import argparse
import errno
import itertools
import json
import os
import signal
import sys
import threading
import time
from datetime import datetime, timezone

VERSION = "v18"


# ---------------------------------------------------------------- the graphs

def petersen():
    """The Petersen graph: 2-subsets of a 5-set, adjacent where disjoint."""
    points = list(itertools.combinations(range(5), 2))
    return adjacency(points, lambda u, v: not set(u) & set(v))


def rook():
    """The 4x4 rook's graph: squares in one row or one column."""
    points = list(itertools.product(range(4), repeat=2))
    return adjacency(points, lambda u, v: (u[0] == v[0]) != (u[1] == v[1]))


def shrikhande():
    """The Shrikhande graph: Z4 x Z4, steps (1,0), (0,1), (1,1) and back."""
    points = list(itertools.product(range(4), repeat=2))
    steps = {(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)}
    return adjacency(points, lambda u, v: ((u[0] - v[0]) % 4, (u[1] - v[1]) % 4) in steps)


def adjacency(points, adjacent):
    return [[int(u != v and adjacent(u, v)) for v in points] for u in points]


GRAPHS = {"rook": rook, "shrikhande": shrikhande, "petersen": petersen}


# ------------------------------------- plain integer arithmetic, no solver

def boundary(A, perm):
    """B for the permutation matrix with a one at (a, perm[a]), by definition."""
    size = len(A)
    B = [[int(0)] * (size - 1) for _ in range(size - 1)]
    for k in range(size):
        kept = [perm[a] for a in range(size) if a != k]
        for i, u in enumerate(kept):
            for j, v in enumerate(kept):
                B[i][j] += A[u][v]
    return [[entry % 2 for entry in row] for row in B]


def rank_mod_2(rows):
    """The rank of a matrix of 0 and 1 over GF(2)."""
    rows = [list(row) for row in rows]
    rank = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(len(rows)):
            if i != rank and rows[i][column]:
                rows[i] = [(x + y) % 2 for x, y in zip(rows[i], rows[rank])]
        rank += 1
    return rank


def faults(A, rank, J, P, B, Y):
    """What is wrong with a claimed solution: an empty list where it is right."""
    size = len(A)
    wrong = []
    entries = [x for matrix in (P, B, Y) for row in matrix for x in row]
    if any(x not in (0, 1) for x in entries):
        wrong.append("an entry is neither 0 nor 1")
    if any(sum(row) != 1 for row in P) or any(sum(column) != 1 for column in zip(*P)):
        wrong.append("P is not a permutation matrix")
        return wrong
    true_B = boundary(A, [row.index(1) for row in P])
    if true_B != B:
        wrong.append("B is not the boundary matrix of P")
    if rank_mod_2(true_B) > rank:
        wrong.append("B has a rank above %s" % rank)
    columns = list(zip(*Y))
    if len(columns) != size - 1 - rank:
        wrong.append("Y has the wrong number of columns")
    if any(sum(b * y for b, y in zip(row, column)) % 2 for row in true_B for column in columns):
        wrong.append("B Y is not zero")
    if [list(Y[row]) for row in J] != [[int(s == t) for t in range(len(J))] for s in range(len(J))]:
        wrong.append("Y_J is not the identity")
    return wrong


# -------------------------------------------------------------- the encoding

class Encoding:
    """The equations of a graph and a rank; a case adds its gauge to them."""

    def __init__(self, A, rank):
        self.size = len(A)
        self.kdim = self.size - 1 - rank
        rows = range(self.size - 1)
        names = ["p%s_%s" % (a, u) for a in range(self.size) for u in range(self.size)]
        names += ["b%s_%s" % (i, j) for i in rows for j in rows]
        names += ["y%s_%s" % (i, t) for i in rows for t in range(self.kdim)]
        self.ring = BooleanPolynomialRing(names=names)
        variables = iter(self.ring.gens())
        self.P = [[next(variables) for _ in range(self.size)] for _ in range(self.size)]
        self.B = [[next(variables) for _ in rows] for _ in rows]
        self.Y = [[next(variables) for _ in range(self.kdim)] for _ in rows]
        self.fixed = self._permutation() + self._boundary(A)

    def _permutation(self):
        one = self.ring.one()
        equations = []
        for line in self.P + [list(column) for column in zip(*self.P)]:
            equations.append(sum(line, one))
            equations += [x * y for x, y in itertools.combinations(line, 2)]
        return equations

    def _boundary(self, A):
        zero = self.ring.zero()
        edges = [(u, v) for u, row in enumerate(A) for v, entry in enumerate(row) if entry]
        moved = [[sum((self.P[a][u] * self.P[b][v] for u, v in edges), zero) if a != b else zero
                  for b in range(self.size)] for a in range(self.size)]
        equations = []
        for i in range(self.size - 1):
            for j in range(self.size - 1):
                # Row i of what is left without row k is row i + 1 from k <= i on.
                terms = (moved[i + int(k <= i)][j + int(k <= j)] for k in range(self.size))
                equations.append(sum(terms, self.B[i][j]))
        return equations

    def equations(self, J):
        """The whole system of one case: B Y = 0 with the rows J of Y the identity."""
        Y = [list(row) for row in self.Y]
        gauge = []
        for s, row in enumerate(J):
            for t in range(self.kdim):
                value = self.ring.one() if s == t else self.ring.zero()
                gauge.append(self.Y[row][t] + value)
                Y[row][t] = value
        zero = self.ring.zero()
        kernel = [sum((b * Y[j][t] for j, b in enumerate(row)), zero)
                  for row in self.B for t in range(self.kdim)]
        return self.fixed + gauge + [equation for equation in kernel if equation != zero]

    def solve(self, J, backend):
        """None where the case has no solution, else the matrices (P, B, Y) as integers."""
        from sage.sat.boolean_polynomials import solve as solve_sat

        found = solve_sat(self.equations(J), **backend)
        if found is False:
            return None
        if not found:
            # Neither a solution nor a proof that there is none: not an answer.
            raise RuntimeError("the SAT backend gave up on J=%s" % (J,))
        return tuple([[int(found[0][x]) for x in row] for row in matrix]
                     for matrix in (self.P, self.B, self.Y))


def sat_backend(name):
    """The solver's class and options; its package is imported here, to fail early."""
    if name == "cryptominisat":
        import pycryptosat  # noqa: F401
        from sage.sat.solvers import CryptoMiniSat
        # Without a number it would take every core of the machine.
        return {"solver": CryptoMiniSat, "s_threads": int(os.environ.get("SAGE_NUM_THREADS") or 1)}
    import pycosat  # noqa: F401
    from sage.sat.solvers import PicoSAT
    return {"solver": PicoSAT}


def cases(size, rank):
    """All cases in their order: gidx and the rows J."""
    for gidx, J in enumerate(Subsets(range(size - 1), size - 1 - rank)):
        yield gidx, tuple(sorted(int(row) for row in J))


# ------------------------------------------------------------ files and log

def log(text):
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print("[%s] %s" % (now, text), flush=True)


def write_synced(path, text):
    # Group-writable where the folder's ACL and the umask let it be: in a bind
    # mount the other side of the user namespace writes the file next.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o660)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


class State:
    """The last finished case of one part, and the cases found SAT."""

    def __init__(self, graph, rank, stride, offset):
        self.tags = {"graph": graph, "rank": str(rank), "stride": str(stride), "off": str(offset)}
        self.stride, self.offset = stride, offset
        self.path = "state_%s_r%s_stride%s_off%s.txt" % (graph, rank, stride, offset)
        self.last = None
        self.solved = []

    def load(self, total):
        """Continue after the file's case; say why where the file does not fit."""
        try:
            with open(self.path, encoding="utf-8") as stream:
                tokens = stream.read().split()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            log("RESUME ignores %s: %s" % (self.path, error))
            return
        try:
            last = int(tokens[0])
            tags = dict(token.split("=", 1) for token in tokens[1:])
            solved = [int(gidx) for gidx in tags.pop("sat", "").split(",") if gidx]
        except (IndexError, ValueError):
            log("RESUME ignores %s: it does not begin with the number of a case" % self.path)
            return
        other = [key for key, value in tags.items() if self.tags.get(key, value) != value]
        if other or not 0 <= last < total or last % self.stride != self.offset:
            log("RESUME ignores %s: it belongs to another run (%s)" % (self.path, " ".join(tokens)))
            return
        self.last, self.solved = last, solved
        log("RESUME after gidx=%s, from %s" % (last, self.path))

    def save(self, last):
        self.last = last
        words = [str(last)] + ["%s=%s" % tag for tag in self.tags.items()]
        words.append("sat=" + ",".join(str(gidx) for gidx in self.solved))
        temporary = self.path + ".new"
        write_synced(temporary, " ".join(words) + "\n")
        os.replace(temporary, self.path)


def create_stop_file(path, text):
    """Make the stop file unless there is one: the first writer wins. True if it was us."""
    temporary = "%s.%s.new" % (path, os.getpid())
    write_synced(temporary, text + "\n")
    try:
        # A link appears with its whole text, and never replaces another file.
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links.
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        os.unlink(temporary)
    return True


def end_on_sigterm():
    """Exit at once on SIGTERM, also in the middle of a case, which can take hours.

    A Python handler would wait for the solver to return, and without a handler
    the first process of a container does not get the signal at all. Hence a
    thread that waits for it. The files are replaced whole, so nothing is torn.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait():
        signal.sigwait({signal.SIGTERM})
        log("TERM ended by SIGTERM; --resume repeats the case it was in")
        os._exit(int(143))

    threading.Thread(target=wait, daemon=True).start()


# ------------------------------------------------------------------ the run

def run(options):
    backend = sat_backend(options.sat_backend)
    A = GRAPHS[options.graph]()
    size, rank = len(A), options.rank
    total = int(binomial(size - 1, size - 1 - rank))
    state = State(options.graph, rank, options.stride, options.offset)
    if options.resume:
        state.load(total)

    mine = len(range(options.offset, total, options.stride))
    first_only = not options.scan_all_J
    name = "graph=%s rank=%s off=%s stride=%s" % (options.graph, rank, options.offset, options.stride)
    log("RUN %s version=%s N=%s kdim=%s cases=%s of %s backend=%s"
        % (name, VERSION, size, size - 1 - rank, mine, total, options.sat_backend))

    encoding = None
    part = itertools.islice(cases(size, rank), options.offset, None, options.stride)
    for number, (gidx, J) in enumerate(part, start=1):
        if first_only and number > 1:
            break
        if state.last is not None and gidx <= state.last:
            continue
        if options.stop_file and os.path.exists(options.stop_file):
            log("STOP %s exists; next would be gidx=%s, case %s of %s"
                % (options.stop_file, gidx, number, mine))
            return
        if encoding is None:
            encoding = Encoding(A, rank)
        label = "gidx=%s case=%s/%s" % (gidx, number, mine)
        spoken = number % options.progress_every == 0
        if spoken:
            log("START %s J=%s" % (label, ",".join(map(str, J))))
        begin = time.monotonic()
        found = encoding.solve(J, backend)
        elapsed = time.monotonic() - begin
        if found is None:
            state.save(gidx)
            if spoken:
                log("DONE %s verdict=UNSAT dt=%.2fs" % (label, elapsed))
            continue
        wrong = faults(A, rank, J, *found)
        if wrong:
            log("ERROR %s the solver's answer is false: %s" % (label, "; ".join(wrong)))
            sys.exit(int(1))
        log("DONE %s verdict=SAT dt=%.2fs" % (label, elapsed))
        report(options, state, gidx, J, found, name)
        return

    if state.solved:
        verdict = "SAT in gidx=%s" % ",".join(map(str, state.solved))
    elif first_only and mine > 1:
        verdict = "UNSAT in its first case; the others were not asked for (--scan_all_J)"
    else:
        verdict = "UNSAT in all its cases"
    log("RESULT %s cases=%s: %s" % (name, mine, verdict))


def report(options, state, gidx, J, found, name):
    """Show a verified solution, close the gate with it, and count the case as finished."""
    P, B, Y = found
    perm = [row.index(1) for row in P]
    if options.want_solution:
        witness = {"graph": options.graph, "rank": int(options.rank), "gidx": int(gidx), "J": list(J),
                   "perm": perm, "rank_B": int(rank_mod_2(B)),
                   "P": lines(P), "B": lines(B), "Y": lines(Y)}
        log("WITNESS " + json.dumps(witness))
    log("VERIFIED P is a permutation, B belongs to it, rank(B)=%s <= %s, B Y = 0, Y_J = identity"
        % (rank_mod_2(B), options.rank))
    text = "SAT gidx=%s off=%s stride=%s graph=%s rank=%s J=%s perm=%s version=%s" % (
        gidx, options.offset, options.stride, options.graph, options.rank,
        ",".join(map(str, J)), ",".join(map(str, perm)), VERSION)
    if options.stop_file and not create_stop_file(options.stop_file, text):
        # The gate names another reason. Left unfinished, this case comes again
        # when the gate is opened, and is then reported in its own name.
        log("STOP %s was made by somebody else first; gidx=%s stays unfinished" % (options.stop_file, gidx))
    else:
        state.solved.append(gidx)
        state.save(gidx)
    log("RESULT %s: SAT in gidx=%s" % (name, gidx))


def lines(matrix):
    return ["".join(map(str, row)) for row in matrix]


# ------------------------------------------------------------- the self-test

def selftest(options):
    """Compare the encoding with brute force over all relabellings of small graphs."""
    for name, known in (("petersen", graphs.PetersenGraph()), ("rook", graphs.RookGraph([4, 4])),
                        ("shrikhande", graphs.ShrikhandeGraph())):
        same = Graph(matrix(GRAPHS[name]())).is_isomorphic(known)
        expect(same, "%s is not the graph that Sage knows by this name" % name)
    expect([J for _, J in cases(6, 2)] == list(itertools.combinations(range(5), 3)),
           "the cases are not in lexicographic order")

    backend = sat_backend(options.sat_backend)
    checked = {"SAT": 0, "UNSAT": 0}
    for name, small in (("path4", graphs.PathGraph(4)), ("star4", graphs.StarGraph(3)),
                        ("cycle5", graphs.CycleGraph(5)), ("bull", graphs.BullGraph()),
                        ("complete5", graphs.CompleteGraph(5))):
        A = [[int(small.has_edge(u, v)) for v in range(small.order())] for u in range(small.order())]
        size = len(A)
        # Every matrix B that any relabelling gives, once.
        every_B = {tuple(map(tuple, boundary(A, perm))) for perm in itertools.permutations(range(size))}
        for rank in range(size - 1):
            encoding = Encoding(A, rank)
            for gidx, J in cases(size, rank):
                found = encoding.solve(J, backend)
                expected = any(has_gauge(B, J) for B in every_B)
                label = "%s rank=%s gidx=%s" % (name, rank, gidx)
                expect((found is not None) == expected,
                       "%s: the encoding says %s, brute force %s" % (label, found is not None, expected))
                if found is not None:
                    wrong = faults(A, rank, J, *found)
                    expect(not wrong, "%s: %s" % (label, "; ".join(wrong)))
                checked["SAT" if expected else "UNSAT"] += 1
    expect(checked["SAT"] and checked["UNSAT"], "the small graphs do not give both answers")
    log("SELFTEST ok: 3 graphs, %s cases SAT and %s UNSAT as by brute force"
        % (checked["SAT"], checked["UNSAT"]))


def has_gauge(B, J):
    """Has the kernel of B a subspace with coordinates J free, so that Y_J = identity can be had?"""
    size = len(B)
    kernel = [v for v in itertools.product((0, 1), repeat=size)
              if not any(sum(b * x for b, x in zip(row, v)) % 2 for row in B)]
    return len({tuple(v[j] for j in J) for v in kernel}) == 2 ** len(J)


def expect(true, message):
    if not true:
        log("SELFTEST failed: " + message)
        sys.exit(int(1))


# ------------------------------------------------------------ the arguments

def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="rank_boundary_sat_v18.sage", allow_abbrev=False,
        description="Is there a relabelling of a graph whose boundary matrix has a rank of at most R?")
    parser.add_argument("--graph", choices=sorted(GRAPHS), help="the graph")
    parser.add_argument("--rank", type=int, help="the rank asked for, from 0 to N-2")
    parser.add_argument("--solver", choices=["sat"], default="sat", help="how a case is decided")
    parser.add_argument("--sat_backend", choices=["cryptominisat", "picosat"], default="cryptominisat")
    parser.add_argument("--scan_all_J", action="store_true", help="all cases of this part, not just the first")
    parser.add_argument("--want_solution", action="store_true", help="print the whole solution, not just SAT")
    parser.add_argument("--resume", action="store_true", help="continue after the last finished case")
    parser.add_argument("--stop_file", help="begin no case while this file exists; made when a solution is found")
    parser.add_argument("--progress_every", type=int, default=1, help="log every so many-th case")
    parser.add_argument("--stride", type=int, default=1, help="the number of parts")
    parser.add_argument("--offset", type=int, default=0, help="this part, from 0 to stride-1")
    parser.add_argument("--selftest", action="store_true", help="check the encoding against brute force")
    options = parser.parse_args(argv)

    if options.selftest:
        return options
    if options.graph is None or options.rank is None:
        parser.error("--graph and --rank are required (or --selftest)")
    limit = len(GRAPHS[options.graph]()) - 2
    if not 0 <= options.rank <= limit:
        parser.error("--rank %s is outside 0..%s, the ranks that are a question for %s"
                     % (options.rank, limit, options.graph))
    if options.stride < 1:
        parser.error("--stride %s: a run has at least 1 part" % options.stride)
    if not 0 <= options.offset < options.stride:
        parser.error("--offset %s is outside 0..%s, the parts of --stride %s"
                     % (options.offset, options.stride - 1, options.stride))
    if options.progress_every < 1:
        parser.error("--progress_every %s: at least 1" % options.progress_every)
    if options.stop_file and not os.path.isdir(os.path.dirname(options.stop_file) or "."):
        parser.error("--stop_file %s: there is no such folder" % options.stop_file)
    return options


if __name__ == "__main__":
    end_on_sigterm()
    given = arguments(sys.argv[1:])
    try:
        (selftest if given.selftest else run)(given)
    except ImportError as missing:
        log("ERROR the SAT backend %s is not installed in this Sage: %s" % (given.sat_backend, missing))
        sys.exit(int(2))
