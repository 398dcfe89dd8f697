#!/bin/sh
# Creates the roles and the database on a new server. Run it once as superuser: as the initialisation script of the PostgreSQL
# image, by Patroni, which passes a connection string, or by hand with psql's connection variables. Passwords come from files and
# appear on standard input only.
#
#   fundsvc_owner     owns the database and its schema; only `fundsvc migrate` logs in as this role
#   fundsvc_app       the service's login, with the rights that the migrations grant to fundsvc_service
#   fundsvc_backup    for pg_basebackup and streaming of the write-ahead log; reads no table
#   fundsvc_archive   for `fundsvc archive`: reads all, and removes entries that an archive has
set -eu
secrets=${FUNDSVC_SECRETS:-/run/secrets}
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname "${1:-postgres}" <<SQL
\set owner_password \`cat "$secrets/owner_password"\`
\set app_password \`cat "$secrets/app_password"\`
\set backup_password \`cat "$secrets/backup_password"\`
\set archive_password \`cat "$secrets/archive_password"\`
CREATE ROLE fundsvc_service NOLOGIN;
CREATE ROLE fundsvc_archiver NOLOGIN;
CREATE ROLE fundsvc_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE fundsvc_app LOGIN PASSWORD :'app_password' IN ROLE fundsvc_service;
CREATE ROLE fundsvc_backup LOGIN REPLICATION PASSWORD :'backup_password';
CREATE ROLE fundsvc_archive LOGIN PASSWORD :'archive_password' IN ROLE fundsvc_archiver;
CREATE DATABASE fundsvc OWNER fundsvc_owner;
REVOKE ALL ON DATABASE fundsvc FROM PUBLIC;
GRANT CONNECT ON DATABASE fundsvc TO fundsvc_service, fundsvc_archiver;
SQL
