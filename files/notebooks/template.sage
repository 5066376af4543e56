r"""
A starting point for a workload of your own: copy this file and replace check().

It counts, over the numbers 0 .. --limit - 1, those with a property.  The numbers
are cut into chunks; a worker gets --stride S and --offset K, and takes the
chunks K, K + S, K + 2S, ...  Between chunks it writes down how far it has come,
and looks whether it is asked to stop.  That is all the queue wants of a program.

    sage template.sage --limit 100000 --stride 4 --offset 1 --resume --stop_file stop.txt
"""
import argparse
import os
import sys
from datetime import datetime, timezone

parser = argparse.ArgumentParser(prog="template.sage", allow_abbrev=False)
parser.add_argument("--limit", type=int, default=200000, help="count below this number")
parser.add_argument("--chunk", type=int, default=1000, help="so many numbers between two looks at the stop file")
parser.add_argument("--stride", type=int, default=1, help="the number of parts; the queue gives it")
parser.add_argument("--offset", type=int, default=0, help="this part; the queue gives it")
parser.add_argument("--resume", action="store_true", help="continue where an earlier run stopped")
parser.add_argument("--stop_file", help="stop before the next chunk while this file exists")
parser.add_argument("--progress_every", type=int, default=10, help="log every so many-th chunk")
options = parser.parse_args()
if min(options.limit, options.chunk, options.stride, options.progress_every) < 1:
    parser.error("--limit, --chunk, --stride and --progress_every are at least 1")
if not 0 <= options.offset < options.stride:
    parser.error("--offset %s is outside 0..%s" % (options.offset, options.stride - 1))


def check(n):
    """The work.  Here: is n a sum of two squares?"""
    return n == 0 or all(e % 2 == 0 for p, e in factor(n) if p % 4 == 3)


def log(text):
    # Flushed, so that the log of a running job is up to date.
    print("[%s] %s" % (datetime.now(timezone.utc).isoformat(timespec="seconds"), text), flush=True)


# What tells one run from another belongs into the name: two runs must not share a state.
state_file = "state_template_limit%s_chunk%s_stride%s_off%s.txt" % (
    options.limit, options.chunk, options.stride, options.offset)
chunks = range(options.offset, -(-options.limit // options.chunk), options.stride)
finished, count = 0, 0
if options.resume and os.path.exists(state_file):
    with open(state_file) as stream:
        finished, count = (int(word) for word in stream.read().split())
    log("RESUME after %s of %s chunks" % (finished, len(chunks)))

for number, chunk in enumerate(chunks[finished:], start=finished + 1):
    # Exit status 0: the queue puts the job back, to resume when the stop file is gone.
    if options.stop_file and os.path.exists(options.stop_file):
        log("STOP %s exists" % options.stop_file)
        sys.exit(int(0))
    first = chunk * options.chunk
    count += sum(1 for n in range(first, min(first + options.chunk, options.limit)) if check(n))
    # Written beside it and renamed: a kill leaves the old state or the new one, never half of it.
    with open(state_file + ".new", "w") as stream:
        stream.write("%s %s\n" % (number, count))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(state_file + ".new", state_file)
    if number % options.progress_every == 0:
        log("DONE chunk %s of %s, %s found so far" % (number, len(chunks), count))

log("RESULT limit=%s off=%s stride=%s: %s found" % (options.limit, options.offset, options.stride, count))
