"""Modules and data of somebody who does not know this project, as a package in the folder where he works."""
