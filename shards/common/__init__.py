"""What every package uses: errors, files, text for people, command lines, files at URLs. Depends on nothing else here."""
