#!/bin/sh
# Run once by the image of PostgreSQL, when its volume is new: makes the login of the service, which owns nothing.
set -eu

psql --set=ON_ERROR_STOP=1 --no-psqlrc --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\getenv password LOGIN_PASSWORD
create role jobengine_login login password :'password';
SQL
