package snapshottest

// aTree is a directory d with files, a subdirectory and an empty one.
func aTree() []Op {
	return []Op{
		mkdir("d", 0o755), write("d/f", "file\n"), write("d/g", "gile\n"),
		mkdir("d/s", 0o700), write("d/s/h", "hile\n"), mkdir("d/s/deep", 0o755), write("d/s/deep/i", "i"),
		mkdir("empty", 0o755), mkdir("other", 0o755), write("other/o", "o"),
		touch("d/f", 1_000_000_000, 123456789), touch("d/s", 1_000_000_001, 1), touch("d", 1_000_000_002, 999_999_999),
	}
}

func renames() []sequence {
	return []sequence{
		{"rename directory", aTree(), [][]Op{
			{mv("d", "e")},
			{write("e/f", "changed\n"), rm("e/g")},
			{mv("e", "d")},
		}},
		{"rename directory over an empty one", aTree(), [][]Op{
			{mv("d", "empty")},
			{write("empty/new", "n"), mkdir("d", 0o711)},
			{mv("d", "empty")}, // not empty: refused
		}},
		{"rename directory into another", aTree(), [][]Op{
			{mv("d", "other/d")},
			{mv("other", "d")},
			{write("d/d/s/h", "x"), mv("d/d/s", "s")},
		}},
		{"rename directory below itself", aTree(), [][]Op{
			{mv("d", "d/s/d")}, // refused
			{mv("d/s", "s"), mv("d", "s/d")},
		}},
		{"rename and make again", aTree(), [][]Op{
			{mv("d", "old"), mkdir("d", 0o750), write("d/f", "another f\n")},
			{mv("d", "newer"), mkdir("d", 0o700)},
			{rmAll("old"), mv("newer", "old")},
		}},
		{"rename away and back", aTree(), [][]Op{
			{mv("d", "tmp"), mv("tmp", "d")},
			{mv("d/s", "tmp")},
			{mv("tmp", "d/s")},
		}},
		{"rename chain", aTree(), [][]Op{
			{mv("d", "1")},
			{mv("1", "2"), write("2/f", "2")},
			{mv("2/s", "1"), mv("2", "1/2")},
			{mv("1/2/f", "f"), mv("1", "d")},
			{mv("d/2", "other/2"), rmAll("d")},
		}},
		{"exchange directories", aTree(), [][]Op{
			{swap("d", "other")},
			{swap("d", "other/s"), write("other/s/o", "oo")},
			{swap("other", "empty")},
		}},
		{"exchange file and directory", aTree(), [][]Op{
			{swap("d", "other/o")},
			{swap("d", "other/o"), swap("d/f", "d/s")},
		}},
		{"rename file", aTree(), [][]Op{
			{mv("d/f", "d/g")},
			{mv("d/g", "other/o"), write("d/f", "new f")},
			{mv("other/o", "d/s/deep/o")},
		}},
		{"rename of a renamed directory's parts", aTree(), [][]Op{
			{mv("d/s", "d/t")},
			{mv("d", "e"), mv("e/t/deep", "e/deep")},
			{mkdir("d", 0o755), mkdir("d/s", 0o755), write("d/s/h", "not the old one")},
			{rmAll("e/t"), mkdir("e/t", 0o755)},
		}},
	}
}

func replacements() []sequence {
	return []sequence{
		{"directory emptied and made again", aTree(), [][]Op{
			{rmAll("d"), mkdir("d", 0o755)},
			{write("d/f", "f again")},
			{rmAll("d"), mkdir("d", 0o700), mkdir("d/s", 0o755), write("d/s/new", "n")},
		}},
		{"file, directory, file", aTree(), [][]Op{
			{rm("d/f"), mkdir("d/f", 0o755), write("d/f/x", "x")},
			{rmAll("d/f"), write("d/f", "a file again")},
			{rm("d/f"), symlink("s", "d/f")},
		}},
		{"directory, file, directory", aTree(), [][]Op{
			{rmAll("d"), write("d", "a file")},
			{rm("d"), mkdir("d", 0o755), write("d/f", "f")},
			{rmAll("d/s"), mkfifo("d/s")},
		}},
		{"directory, link, directory", aTree(), [][]Op{
			{mv("d", "real"), symlink("real", "d")},
			{rm("d"), mv("real", "d")},
			{rmAll("d"), symlink("other", "d")},
		}},
		{"remove and make the same", aTree(), [][]Op{
			{rm("d/f"), write("d/f", "file\n"), touch("d/f", 1_000_000_000, 123456789), touch("d", 1_000_000_002, 999_999_999)},
			{rmAll("other"), mkdir("other", 0o755), write("other/o", "o")},
		}},
		{"remove all", aTree(), [][]Op{
			{rmAll("d"), rmdir("empty")},
			{rmAll("other")},
			{write("only", "one")},
		}},
		{"make and remove", aTree(), [][]Op{
			{write("d/new", "n"), mkdir("d/newdir", 0o755), write("d/newdir/x", "x")},
			{rm("d/new"), rmAll("d/newdir")},
			{write("d/new", "n"), rm("d/new")},
		}},
		{"remove of what is not empty or not there", aTree(), [][]Op{
			{rmdir("d"), rm("d"), rm("nothing"), rmdir("d/f"), mkdir("d", 0o755)},
			{rm("d/f"), rm("d/f"), rmdir("empty"), rmdir("empty")},
		}},
		{"directory replaced by one of its own", aTree(), [][]Op{
			{mv("d/s", "s"), rmAll("d"), mv("s", "d"), mkdir("d/f", 0o755), write("d/g", "not the old one")},
			{mkdir("d/s", 0o700), rm("d/g")},
		}},
		{"emptied directory replaced by another", aTree(), [][]Op{
			{rm("d/f"), rm("d/g"), rmAll("d/s")},
			{mv("other", "d")},
			{rmAll("d"), mkdir("d", 0o755), mv("empty", "d")},
		}},
	}
}

func links() []sequence {
	base := []Op{
		mkdir("d", 0o755), write("a", "shared\n"), ln("a", "b"), ln("a", "d/c"),
		write("single", "one name\n"), symlink("a", "sym"), ln("sym", "sym2"), mkfifo("p"), ln("p", "d/p2"),
	}
	return []sequence{
		{"hard link written through one name", base, [][]Op{
			{appendTo("a", "more\n")},
			{appendTo("b", "b\n"), chmod("d/c", 0o600)},
			{read("a"), read("b")},
		}},
		{"hard link added", base, [][]Op{
			{ln("single", "second")},
			{appendTo("second", "by second\n")},
			{ln("second", "third"), appendTo("single", "x"), overwrite("third", 0, "ONE")},
		}},
		{"hard link to a shared file added", base, [][]Op{
			{ln("a", "z"), appendTo("z", "z\n")},
			{ln("d/c", "y"), touch("y", 900_000_000, 7)},
		}},
		{"hard link removed", base, [][]Op{
			{rm("a")},
			{appendTo("b", "b\n"), rm("d/c")},
			{ln("b", "a"), ln("b", "d/c")},
		}},
		{"hard link renamed", base, [][]Op{
			{mv("a", "e")},
			{mv("b", "d/c")},
			{mv("d", "dd"), appendTo("dd/c", "x")},
		}},
		{"hard links made together", base, [][]Op{
			{write("n1", "n"), ln("n1", "n2"), ln("n2", "d/n3"), appendTo("n3", "")},
			{appendTo("n2", "2"), rm("n1")},
			{replace("d/n3", "alone")},
		}},
		{"hard links of what is no file", base, [][]Op{
			{chown("sym", 7, 7), chmod("p", 0o600)},
			{rm("sym2"), mv("p", "q")},
		}},
		{"symbolic links", base, [][]Op{
			{symlink("/nonexistent/absolute", "abs"), symlink("dangling", "d/dang"), symlink("../a", "d/up"), symlink("d", "dir")},
			{rm("sym"), symlink("b", "sym"), chown("abs", 1, 2), touch("d/up", 1_100_000_000, 5)},
			{mv("dir", "d/dir"), setx("abs", "trusted.x", "on a link"), rm("d/dang")},
		}},
	}
}
