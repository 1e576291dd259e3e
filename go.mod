module cumulet.io

go 1.26.0
