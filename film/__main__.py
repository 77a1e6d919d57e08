"`python -m film` is the command `film`."
from film.cli import main

raise SystemExit(main())
