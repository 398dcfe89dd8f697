#!/bin/sh
# The roles of a new database server, run once by its superuser: as the PostgreSQL image's initialisation script, or by hand
# with psql's connection variables set. Passwords come from files and pass through standard input alone.
#
#   fundsvc_owner     owns the database and its schema; `fundsvc migrate` alone logs in as it
#   fundsvc_app       what the service logs in as; it may do what the migrations grant to fundsvc_service, and no more
#   fundsvc_backup    reads the whole server for pg_basebackup and archived write-ahead log, and no table
set -eu
secrets=${FUNDSVC_SECRETS:-/run/secrets}
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\set owner_password \`cat "$secrets/owner_password"\`
\set app_password \`cat "$secrets/app_password"\`
\set backup_password \`cat "$secrets/backup_password"\`
CREATE ROLE fundsvc_service NOLOGIN;
CREATE ROLE fundsvc_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE fundsvc_app LOGIN PASSWORD :'app_password' IN ROLE fundsvc_service;
CREATE ROLE fundsvc_backup LOGIN REPLICATION PASSWORD :'backup_password';
CREATE DATABASE fundsvc OWNER fundsvc_owner;
REVOKE ALL ON DATABASE fundsvc FROM PUBLIC;
GRANT CONNECT ON DATABASE fundsvc TO fundsvc_service;
SQL
