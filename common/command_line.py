"""What every command does: one line for an error, exit codes, types of flags."""
import os
import sys
import traceback


def run_command(main, parser, arguments=None):
    """Run main(args) as a command: an error that a user can cause is one line on stderr and exit code 1, with
    --debug also its traceback; Ctrl-C is code 130; a closed pipe ends quietly."""
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(arguments)
    try:
        main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if args.debug:
            traceback.print_exc()
        message = (str(error).strip() or repr(error)).splitlines()[-1]       # a worker's error brings its traceback
        print(f"{parser.prog}: {message}", file=sys.stderr)
        sys.exit(1)
