"""What `make audit` and `make licences` run. No part of the program."""
